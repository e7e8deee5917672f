"""Songs in, stems out: numpy blocks (frames, channels), float32."""
