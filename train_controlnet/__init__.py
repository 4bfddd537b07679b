"""Trainers on top of the depth model: depth ControlNets, and the small text-to-image base of the embedded models."""
