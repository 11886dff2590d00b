//! Which vector unit runs the kernels, found at run time.

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::portable::Portable;
use super::simd::Simd;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2::Avx2, avx512::Avx512};

/// The instruction sets that the kernels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// AVX-512 with products of bf16 pairs, and those of experts in AMX tiles
    Amx,
    /// AVX-512 F, BW, DQ and VL
    Avx512 {
        /// with products of bf16 pairs (AVX512-BF16)
        bf16: bool,
    },
    /// AVX2, FMA and F16C
    Avx2Fma,
    /// NEON, on AArch64
    Neon,
    /// plain Rust, vectorised by the compiler for the target's base instructions
    Portable,
}

/// Work that is compiled once for each vector unit.
pub(crate) trait Job {
    /// What it gives back.
    type Output;
    /// Must be `#[inline(always)]`, and so must be what it calls.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

impl Isa {
    /// All that this processor has, the fastest first. Never empty.
    pub fn available() -> impl Iterator<Item = Self> {
        let wide = [Self::Amx, Self::Avx512 { bf16: true }, Self::Avx512 { bf16: false }];
        wide.into_iter().chain([Self::Avx2Fma, Self::Neon, Self::Portable]).filter(|isa| isa.present())
    }

    /// The fastest that this processor has.
    pub fn best() -> Self {
        Self::available().next().unwrap_or(Self::Portable)
    }

    /// Whether this processor has it.
    pub fn present(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let wide = wide && avx2;
            let pairs = wide && is_x86_feature_detected!("avx512bf16");
            match self {
                Self::Amx => pairs && amx::present(),
                Self::Avx512 { bf16: true } => pairs,
                Self::Avx512 { bf16: false } => wide,
                Self::Avx2Fma => avx2,
                Self::Neon => false,
                Self::Portable => true,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            // Pairs are taken apart as they lie in a little-endian register.
            let neon = cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("neon");
            self == Self::Portable || self == Self::Neon && neon
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Self::Portable
        }
    }
}

/// An instruction set that this processor was found to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    isa: Isa,
    #[cfg(test)]
    imitates: Option<Imitation>,
}

/// What the portable unit does in place of a processor that this is not.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Imitation {
    Pairs,
    Tiles,
}

impl Unit {
    /// `None` if this processor does not have `isa`.
    pub(crate) fn new(isa: Isa) -> Option<Self> {
        isa.present().then_some(Self {
            isa,
            #[cfg(test)]
            imitates: None,
        })
    }

    /// The portable unit as one that multiplies bf16 pairs.
    #[cfg(test)]
    pub(crate) fn pairs() -> Self {
        Self { isa: Isa::Portable, imitates: Some(Imitation::Pairs) }
    }

    /// The portable unit as one that multiplies bf16 pairs in tiles.
    #[cfg(test)]
    pub(crate) fn tiles() -> Self {
        Self { isa: Isa::Portable, imitates: Some(Imitation::Tiles) }
    }

    /// Which one it is.
    pub(crate) fn isa(self) -> Isa {
        self.isa
    }

    /// Columns of a packed panel.
    pub(crate) fn cols(self) -> usize {
        struct Cols;
        impl Job for Cols {
            type Output = usize;
            #[inline(always)]
            fn run<S: Simd>(self, _: S) -> usize {
                S::COLS
            }
        }
        self.run(Cols)
    }

    /// Runs `job` on this unit.
    #[inline]
    pub(crate) fn run<J: Job>(self, job: J) -> J::Output {
        #[cfg(test)]
        match self.imitates {
            Some(Imitation::Pairs) => return job.run(Portable::<true>),
            Some(Imitation::Tiles) => return job.run(Portable::<true, true>),
            None => {}
        }
        match self.isa {
            // SAFETY: `new` found the instructions in this processor.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => unsafe { avx512_amx(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 { bf16: true } => unsafe { avx512_bf16(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 { bf16: false } => unsafe { avx512(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Fma => unsafe { avx2(job) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { neon(job) },
            _ => job.run(Portable::<false>),
        }
    }
}

/// The caller must have found AMX too, which is no feature that the compiler knows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn avx512_amx<J: Job>(job: J) -> J::Output {
    // SAFETY: a caller of this function has the features, and AMX.
    job.run(unsafe { Avx512::<true, true>::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn avx512_bf16<J: Job>(job: J) -> J::Output {
    // SAFETY: a caller of this function has the features.
    job.run(unsafe { Avx512::<true, false>::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn avx512<J: Job>(job: J) -> J::Output {
    // SAFETY: a caller of this function has the features.
    job.run(unsafe { Avx512::<false, false>::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<J: Job>(job: J) -> J::Output {
    // SAFETY: a caller of this function has the features.
    job.run(unsafe { Avx2::new() })
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon<J: Job>(job: J) -> J::Output {
    // SAFETY: a caller of this function has the feature.
    job.run(unsafe { Neon::new() })
}
