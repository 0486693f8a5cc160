"""What happens to events before they become tokens."""
