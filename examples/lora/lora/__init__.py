"""lora: A Flower / PEFT app."""
