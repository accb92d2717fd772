"""BN-Inception at full definition, trained from records on disk on many devices."""
