"""Cascade Mask R-CNN with 4conv1fc box heads (Cai & Vasconcelos; heads as in Swin's recipe)."""

_base_ = "./mask_rcnn.py"


def box_head(target_stds):
    """One stage's box head; 4 convolutions and 1 fully connected layer."""
    return dict(
        type="ConvFCBBoxHead",
        num_shared_convs=4,
        num_shared_fcs=1,
        in_channels=256,
        conv_out_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=80,
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=target_stds,
        ),
        reg_class_agnostic=False,
        reg_decoded_bbox=True,
        norm_cfg=dict(type="BN", requires_grad=True),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
    )


def rcnn_train_cfg(iou):
    """Assigner and sampler of one stage: a RoI is positive from `iou` up, and only then."""
    ious = dict(pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou, match_low_quality=False)
    rcnn = _base_.model.train_cfg.rcnn
    return dict(rcnn, assigner=dict(rcnn["assigner"], **ious))


model = dict(
    type="CascadeRCNN",
    rpn_head=dict(loss_bbox=dict(type="SmoothL1Loss", beta=1.0 / 9.0)),
    roi_head=dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            box_head([0.1, 0.1, 0.2, 0.2]),
            box_head([0.05, 0.05, 0.1, 0.1]),
            box_head([0.033, 0.033, 0.067, 0.067]),
        ],
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rpn_proposal=dict(max_per_img=2000),
        rcnn=[rcnn_train_cfg(0.5), rcnn_train_cfg(0.6), rcnn_train_cfg(0.7)],
    ),
)
