"""What follows from BN((aW)u) = BN(Wu)."""
