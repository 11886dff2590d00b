//! Ways: how the experts' products are computed, chosen from what the device reports.

use crate::platform::{DeviceKind, Facts};
use moe_core::{DType, Path};
use std::fmt::Write;

/// How the experts' products are computed.
///
/// A device has its ways from what it reports, and each product takes the first that can compute it; its name is the
/// launch's path. [`OpenCl::open_way`](crate::OpenCl::open_way) allows one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Way {
    /// one work item per tile, with vectors of `lanes` floats, 4, 8 or 16: processors
    Vector {
        /// floats of a vector
        lanes: usize,
        /// columns of a tile: 32, 64 or 128
        columns: usize,
    },
    /// tiles of `tile` rows and columns, 64 or 128, through local memory: any graphics processor
    Local {
        /// rows and columns of a tile
        tile: usize,
    },
    /// subgroups of `lanes` work items, 8 or 16, that tell each other their values: Intel's graphics processors
    Subgroup {
        /// work items of a subgroup
        lanes: usize,
    },
    /// the matrix units of Intel's graphics processors, for bf16 and f16
    Matrix {
        /// work items of a subgroup: 8 or 16, as the unit has columns
        lanes: usize,
        /// the unit's instruction is computed by a loop, so that any device with subgroups can test the rest
        emulated: bool,
    },
}

/// Rows and columns of subgroups in a group.
const GROUP: [usize; 2] = [4, 4];
const EMULATED_GROUP: [usize; 2] = [2, 2];
/// `TILE_ROWS` and `DEPTH` of `kernels/vector.cl`.
const VECTOR_ROWS: usize = 144;
const VECTOR_DEPTH: usize = 128;

impl Way {
    /// What a device can do, the fastest first.
    pub(crate) fn menu(facts: &Facts) -> Vec<Self> {
        let lanes = facts.lanes.clamp(4, 16).next_power_of_two();
        let vector = [128, 64, 32].map(|columns| Self::Vector { lanes, columns });
        let local = [128, 64].map(|tile| Self::Local { tile });
        // A subgroup's registers hold its sums if it is no wider than it must be.
        let narrow = facts.subgroups.iter().copied().filter(|lanes| [8, 16].contains(lanes)).min();
        let subgroups = facts.has("cl_intel_subgroups")
            && facts.has("cl_intel_subgroups_short")
            && facts.has("cl_intel_required_subgroup_size");
        let mut ways = Vec::new();
        if let (Some(lanes), true, DeviceKind::Gpu) = (narrow, subgroups, facts.kind) {
            if facts.has("cl_intel_subgroup_matrix_multiply_accumulate") {
                ways.push(Self::Matrix { lanes, emulated: false });
            }
            ways.push(Self::Subgroup { lanes });
        }
        if facts.kind == DeviceKind::Cpu {
            ways.extend(vector);
        }
        ways.extend(local);
        ways.retain(|way| way.fits(facts));
        ways
    }

    /// Whether a device has room and instructions for it.
    pub fn fits(self, facts: &Facts) -> bool {
        let subgroups = || facts.has("cl_intel_subgroups") && facts.has("cl_intel_required_subgroup_size");
        let room = self.items() <= facts.group && self.local() <= facts.local;
        match self {
            Self::Vector { lanes, columns } => {
                room && [4, 8, 16].contains(&lanes) && [32, 64, 128].contains(&columns)
            }
            Self::Local { tile } => room && [64, 128].contains(&tile),
            Self::Subgroup { lanes } => room && subgroups() && facts.subgroups.contains(&lanes),
            Self::Matrix { lanes, emulated } => {
                let unit = emulated || facts.has("cl_intel_subgroup_matrix_multiply_accumulate");
                room && unit && subgroups() && [8, 16].contains(&lanes) && facts.subgroups.contains(&lanes)
            }
        }
    }

    /// Whether it computes products of a type; with `factors` on an operand, which are f32.
    fn computes(self, storage: DType, factors: bool) -> bool {
        !matches!(self, Self::Matrix { .. }) || (storage != DType::F32 && !factors)
    }

    /// The path that its launches name.
    pub fn path(self) -> Path {
        Path(match self {
            Self::Vector { .. } => "vector",
            Self::Local { tile: 128 } => "local 128x128",
            Self::Local { .. } => "local 64x64",
            Self::Subgroup { .. } => "subgroup",
            Self::Matrix { emulated: false, .. } => "matrix",
            Self::Matrix { emulated: true, .. } => "matrix emulated",
        })
    }

    /// The files of `kernels/` that compute it.
    pub(crate) fn text(self) -> &'static str {
        macro_rules! files {
            ($($name:literal),*) => {
                concat!($("#line 1 \"", $name, ".cl\"\n", include_str!(concat!("../kernels/", $name, ".cl"))),*)
            };
        }
        match self {
            Self::Vector { .. } => files!("vector"),
            Self::Local { .. } => files!("local"),
            Self::Subgroup { .. } => files!("subtile", "subgroup"),
            Self::Matrix { .. } => files!("subtile", "matrix"),
        }
    }

    /// What the compiler is told: the numbers that its files are written in.
    pub(crate) fn options(self, facts: &Facts) -> String {
        let mut options = String::new();
        // Processors have subgroups for tests of these ways, and optimise them for longer than the tests run.
        if facts.kind == DeviceKind::Cpu && matches!(self, Self::Subgroup { .. } | Self::Matrix { .. }) {
            options += " -cl-opt-disable";
        }
        match self {
            Self::Vector { lanes, columns } => {
                let _ = write!(options, " -DVEC={lanes} -DTILE_COLUMNS={columns}u");
            }
            Self::Local { tile } => {
                let _ = write!(options, " -DVEC=4 -DTILE={tile}");
            }
            Self::Subgroup { lanes } => {
                let [rows, columns] = self.group();
                let _ = write!(options, " -DVEC=1 -DSG={lanes} -DSTEP={lanes} -DPAIR=1");
                let _ = write!(options, " -DSUB_ROWS=16 -DGROUP_ROWS={rows} -DGROUP_COLUMNS={columns}");
            }
            Self::Matrix { lanes, emulated } => {
                let [rows, columns] = self.group();
                let _ = write!(options, " -DVEC=1 -DSG={lanes} -DSTEP=16 -DPAIR=2");
                let _ = write!(options, " -DSUB_ROWS=32 -DGROUP_ROWS={rows} -DGROUP_COLUMNS={columns}");
                options += if emulated { " -DEMULATE" } else { " -cl-intel-256-GRF-per-thread" };
            }
        }
        options
    }

    fn group(self) -> [usize; 2] {
        if matches!(self, Self::Matrix { emulated: true, .. }) { EMULATED_GROUP } else { GROUP }
    }

    /// Work items of a group: `GROUP_ITEMS` of its files.
    pub(crate) fn items(self) -> usize {
        match self {
            Self::Vector { .. } => 1,
            Self::Local { tile } => (tile / 8) * (tile / 8),
            Self::Subgroup { lanes } | Self::Matrix { lanes, .. } => {
                self.group().iter().product::<usize>() * lanes
            }
        }
    }

    /// Rows of a tile: `TILE_ROWS`.
    pub(crate) fn tile_rows(self) -> usize {
        match self {
            Self::Vector { .. } => VECTOR_ROWS,
            Self::Local { tile } => tile,
            Self::Subgroup { .. } => self.group()[0] * 16,
            Self::Matrix { .. } => self.group()[0] * 32,
        }
    }

    /// Columns of a tile: `TILE_COLUMNS`.
    pub(crate) fn tile_columns(self) -> usize {
        match self {
            Self::Vector { columns, .. } => columns,
            Self::Local { tile } => tile,
            Self::Subgroup { lanes } | Self::Matrix { lanes, .. } => self.group()[1] * 2 * lanes,
        }
    }

    /// Columns that have a row's sum in common: `PART`.
    pub(crate) fn part(self) -> usize {
        match self {
            Self::Vector { .. } | Self::Local { .. } => self.tile_columns(),
            Self::Subgroup { lanes } | Self::Matrix { lanes, .. } => 2 * lanes,
        }
    }

    /// Bytes of local memory: `SHARED` floats.
    fn local(self) -> usize {
        4 * match self {
            Self::Vector { lanes, columns } => {
                let block_rows = match lanes {
                    16 => 12,
                    8 => 6,
                    _ => 4,
                };
                let blocks = VECTOR_ROWS / block_rows;
                blocks * (block_rows * VECTOR_DEPTH + lanes) + columns * (VECTOR_DEPTH + VECTOR_ROWS)
            }
            Self::Local { tile } => 4 * 16 * (tile + 4),
            Self::Subgroup { .. } | Self::Matrix { .. } => 1,
        }
    }
}

/// The ways of a device, the fastest first.
#[derive(Debug)]
pub(crate) struct Ways(Vec<Way>);

impl Ways {
    /// All that the device can do, or the one asked for.
    pub(crate) fn new(facts: &Facts, only: Option<Way>) -> Option<Self> {
        let ways = match only {
            // Not every product can be computed on the matrix unit.
            Some(way @ Way::Matrix { lanes, .. }) => vec![way, Way::Subgroup { lanes }],
            Some(way) => vec![way],
            None => Way::menu(facts),
        };
        let fit = !ways.is_empty() && ways.iter().all(|way| way.fits(facts));
        fit.then(|| Self(needed(ways)))
    }

    /// Those that products of this type need.
    pub(crate) fn of(&self, storage: DType) -> impl Iterator<Item = Way> {
        let mut ways = [self.choose(storage, false), self.choose(storage, true)].into_iter();
        let (first, second) = (ways.next(), ways.next());
        first.into_iter().chain(second.filter(|way| Some(*way) != first))
    }

    /// The first that can compute it.
    pub(crate) fn choose(&self, storage: DType, factors: bool) -> Way {
        let able = self.0.iter().copied().find(|way| way.computes(storage, factors));
        able.unwrap_or(self.0[self.0.len() - 1])
    }
}

/// The matrix unit's way, if there is one, and the first of the others.
fn needed(ways: Vec<Way>) -> Vec<Way> {
    let general = ways.iter().position(|way| way.computes(DType::F32, true));
    let count = general.map_or(ways.len(), |at| at + 1);
    ways.into_iter().take(count).collect()
}

#[cfg(test)]
mod tests;
