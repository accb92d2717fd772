"""What each policy of synchronisation costs."""
