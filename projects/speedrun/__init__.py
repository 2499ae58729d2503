"""Any preset of the shared Decoder, on any text."""
