"""A study of BN((aW)u) = BN(Wu) and its consequences."""
