"""Learning from what a trained run says."""
