-- The references that have scored sequences, and what people call them.
select
  fingerprint,
  name
from scorers
order by fingerprint
