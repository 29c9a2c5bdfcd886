"""What the stages share. Modules get paths and values; only the stages know file names."""

import os

# Must be set before torch is loaded. OpenMP's threads wait for each other by spinning; where any
# other process wants the same core, that made a training step on two cores 5 to 15 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Must be set before ONNX Runtime is loaded: from 1.32 on it tells Microsoft of each session.
# Its own `disable_telemetry_events` comes too late for the first of these calls.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
