"""How LoRAs combine: algebra on ΔW, never on the factors apart. One file a method; ``methods.METHODS`` lists them."""
