//! autoscaling/v2, which is stored, and autoscaling/v1.

pub mod convert;
pub mod horizontal_pod_autoscaler;
pub mod horizontal_pod_autoscaler_v1;
