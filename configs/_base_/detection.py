"""Loop-independent parts of MMDetection recipes."""

_base_ = "./runtime.py"

default_scope = "mmdet"
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="DetVisualizationHook"),
)
visualizer = dict(
    type="DetLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer"
)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
