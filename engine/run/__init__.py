"""From requests to tokens: who runs, what a pass holds, and where it is on the device."""
