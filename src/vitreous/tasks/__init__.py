"""What is optimised and measured, and the folders that hold the outcome."""
