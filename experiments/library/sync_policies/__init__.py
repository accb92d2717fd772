"""A study of the accuracy that each policy of synchronisation costs, and why."""
