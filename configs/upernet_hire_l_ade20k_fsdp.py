"""UperNet, Hire-MLP-Large, ADE20K, its weights and optimizer divided among the GPUs.

The steps are those of upernet_hire_l_ade20k.py, in less memory and with more traffic: each GPU
keeps a part of the weights, gradients and optimizer state, and gathers one block at a time
(PyTorch's FSDP, by mmengine's strategy). The checkpoints are that recipe's, too. Not run on GPUs
here.

    bash tools/dist_train.sh configs/upernet_hire_l_ade20k_fsdp.py 8
"""

_base_ = "./upernet_hire_l_ade20k.py"

runner_type = "hire_mlp_mm.FlexibleRunner"
strategy = dict(
    type="hire_mlp_mm.fsdp.FSDPStrategy",
    model_wrapper=dict(auto_wrap_policy="hire_mlp_mm.fsdp.blocks_apart"),
    state_dict_cfg="full",
    sync_bn="torch",  # this runner has no heed for a `sync_bn` of the config
)
