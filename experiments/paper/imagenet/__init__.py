"""A study of BN-Inception at full size, trained from records on many devices."""
