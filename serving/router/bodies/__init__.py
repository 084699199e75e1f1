"""Request bodies: what is read of them, their budget, the model's name in them."""
