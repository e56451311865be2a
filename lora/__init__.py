"""What a LoRA is: algebra (delta), names (keys), files (files) and what files say of themselves (metadata)."""
