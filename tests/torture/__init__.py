"""`make torture`: real runs under random faults for as many minutes as one likes; see __main__.py."""
