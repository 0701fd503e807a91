"""Recognise and open files that a stranger may have made, without running anything in them."""
