"""What MMSegmentation's models share: images of 512 x 512 in training, whole ones in testing."""

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(type="HireMLP", arch="small"),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
