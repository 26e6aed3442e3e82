"""What all runs of the study share: optimizer, schedule, seed, the order of the images.

Nothing is chosen by what is tested: the figure that counts is the one after the last step.

What depends on the number of steps, or replaces a key of the host's base, has a name of its own
here, and each data set's config puts it in its place: mmengine refuses a key that two bases have.
"""

workers = dict(nano=0, paper=8)["{{$STUDY_SIZE:nano}}"]
loader = dict(num_workers=workers, persistent_workers=workers > 0)
train_dataloader = dict(**loader, sampler=dict(type="InfiniteSampler", shuffle=True))
val_dataloader = dict(**loader, sampler=dict(type="DefaultSampler", shuffle=False))
test_dataloader = val_dataloader
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,  # biases, norms, and in two dimensions Swin's table of biases
        custom_keys={".relative_position_bias_table": dict(decay_mult=0.0)},
    ),
    clip_grad=dict(max_norm=5.0),
)
warm_up = dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0)
cosine = dict(type="CosineAnnealingLR", by_epoch=False, begin=0, eta_min=1e-5)
study_hooks = [dict(type="ChannelsLastHook"), dict(type="TrainingTimeHook")]
hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1, save_best=None),
)
randomness = dict(seed=0)
