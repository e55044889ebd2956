"""What a run has to show for itself: pictures, figures and one self-contained HTML page."""
