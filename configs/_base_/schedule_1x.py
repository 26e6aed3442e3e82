"""12 epochs on 8 GPUs x 2 images, in the line of PVT, CycleMLP and Wave-MLP.

The authors published no detection recipe; this is the one of the peers that their 1x rows stand
beside. AdamW 1e-4 is the text of CycleMLP (section 4.3) and of Wave-MLP (version 1, section 4.2,
"the recipe of PVT"), neither of which says the weight decay: 1e-4 is that of PoolFormer's config,
of the same line. Steps at 8 and 11 and the warm-up are MMDetection's 1x.
"""

max_epochs = 12
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    # MMDetection 2's default warm-up, which Swin's config inherits, too.
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type="MultiStepLR",
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[8, 11],
        gamma=0.1,
    ),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
