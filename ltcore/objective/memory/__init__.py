"""What losses remember between steps, shared by several."""
