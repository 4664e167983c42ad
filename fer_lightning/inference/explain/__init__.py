"""What a network looks at, and what it withstands: saliency maps and a robustness card."""
