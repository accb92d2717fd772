"""What do policies of synchronisation cost in accuracy, and why?"""
