"""A study that compiles training steps for accelerators without running them."""
