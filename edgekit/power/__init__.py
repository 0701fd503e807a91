"""What a machine draws, and whether it is held back: rails, power mode, clocks, throttling.

Everything is read from files of the kernel and from the vendor's own commands. No torch: this also
runs on devices.
"""
