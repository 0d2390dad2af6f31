"""The report: one HTML page that shows a store."""
