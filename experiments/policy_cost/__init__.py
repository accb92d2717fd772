"""A study of the time that each policy of synchronisation costs."""
