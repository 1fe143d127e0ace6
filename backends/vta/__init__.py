"""The VTA accelerator: its description, its instructions and a simulator that runs them."""
