"""`python -m train_controlnet` and `accelerate launch -m train_controlnet`: the ControlNet trainer."""

from depth_model.config import run_module
from train_controlnet.train import Config, main

if __name__ == "__main__":
    run_module(Config, main, "train_controlnet")
