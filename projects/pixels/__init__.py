"""Images pixel by pixel with the shared Decoder: samples as pictures, and bits per dimension."""
