//! Makes the MoE layers of a model on a device that is chosen at run time.

use super::blocks::Blocks;
use super::device_blocks::{BlocksConfig, DeviceBlocks};
use crate::device::{AnyDevice, DeviceTask};
use crate::ranks::Ranks;
use anyhow::Result;
use clap::ValueEnum;
use half::bf16;
use moe_core::{MoeDevice, Scalar};
use std::sync::Arc;

/// The type that weights and activations of MoE layers are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Storage {
    /// 32-bit float
    #[default]
    F32,
    /// bfloat16, with f32 master weights in the optimizer
    Bf16,
}

/// The task of making MoE layers.
pub struct MakeBlocks<'a> {
    /// what the layers store
    pub storage: Storage,
    /// the layers
    pub config: &'a BlocksConfig,
    /// the ranks that they are spread over
    pub ranks: &'a Arc<Ranks>,
}

impl DeviceTask for MakeBlocks<'_> {
    type Output = Result<Box<dyn Blocks<f32>>>;

    fn run<D: AnyDevice>(self, device: D) -> Self::Output {
        match self.storage {
            Storage::F32 => boxed::<D, f32>(&device, &self),
            Storage::Bf16 => boxed::<D, bf16>(&device, &self),
        }
    }
}

fn boxed<D: MoeDevice<T>, T: Scalar<Acc = f32>>(
    device: &D,
    make: &MakeBlocks<'_>,
) -> Result<Box<dyn Blocks<f32>>> {
    Ok(Box::new(DeviceBlocks::<D, T>::init(device, make.config, make.ranks)?))
}
