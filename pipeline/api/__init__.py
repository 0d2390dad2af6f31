"""The stages as `import offpref` gives them: verbs on an open store, and what they return."""
