"""What every recipe shares: the backbone's registration, its runner, logging, environment."""

# It also lets detectors run on mmcv-lite; with compiled mmcv it leaves mmcv's ops alone.
custom_imports = dict(imports=["hire_mlp_mm"], allow_failed_imports=False)

# mmengine's, with every guarantee of docs/reliability.md: MMDetection's, MMSegmentation's and
# MMPretrain's own tools build the runner that stands here.
runner_type = "hire_mlp_mm.Runner"
# For who builds another: MMSegmentation's tools/test.py does.
custom_hooks = [dict(type="hire_mlp_mm.LoadHook")]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
log_level = "INFO"
load_from = None
resume = False

# BatchNorm becomes SyncBN in distributed training, and only there: one GPU and CPU need none.
sync_bn = "torch"
