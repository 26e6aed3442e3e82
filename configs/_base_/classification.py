"""Loop-independent parts of MMPretrain recipes."""

_base_ = "./runtime.py"

default_scope = "mmpretrain"
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=100),
    param_scheduler=dict(type="ParamSchedulerHook"),
    # The authors' script keeps the best epoch's weights, too.
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3, save_best="auto"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="VisualizationHook", enable=False),
)
visualizer = dict(
    type="UniversalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer"
)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
env_cfg = dict(cudnn_benchmark=True)  # as the authors' script; all images have one size
sync_bn = None  # neither does the authors' script synchronise BatchNorm
