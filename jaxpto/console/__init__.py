"""What every command shares: parsing, the terminal, interrupts."""
