//! Sharded checkpoints: from any mesh to any other, and what is wrong with damaged ones.

use crate::ranks::{on_ranks, placed};
use crate::steps::{Kept, config};
use half::bf16;
use moe_core::{AdamW, AdamWOptions, Host, MoeConfig, MoeDevice, MoeLayer, Scalar, Session, StateTensor};
use moe_dist::World;
use moe_dist::checkpoint::{
    Checkpoint, CheckpointError, LayerParts, Piece, load_layer, load_shards, save_layer, save_shards, write,
};
use moe_dist::fsdp::Fsdp;
use moe_dist::mesh::{Degrees, Mesh};
use moe_tests::Random;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const PREFIX: &str = "layers.3.";

/// A folder that is gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("moe-checkpoint-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A layer and an optimizer in the middle of training, as one process has them.
fn write_random<T: Scalar>(folder: &Path, config: &MoeConfig)
where
    Host: MoeDevice<T>,
{
    let layer = MoeLayer::<Host, T>::init(&Host, config, 5).expect("a layer");
    let adam = AdamW::new(&layer).expect("an optimizer");
    let mut seed = 0;
    let randomly = |state: Vec<StateTensor>| {
        state.into_iter().map(move |mut tensor| {
            seed += 1;
            let elements = tensor.bytes.len() / tensor.dtype.size();
            if tensor.dtype == T::DTYPE {
                tensor.bytes = bytemuck::cast_slice(&Random::new(seed).scaled::<T>(elements, 1.0)).to_vec();
            } else if tensor.name != "steps" {
                tensor.bytes =
                    bytemuck::cast_slice(&Random::new(seed).scaled::<T::Acc>(elements, 1.0)).to_vec();
            } else {
                tensor.bytes = bytemuck::cast_slice(&[77_u32, 1]).to_vec();
            }
            tensor
        })
    };
    let optimizer = randomly(adam.state(&layer).expect("its state")).collect::<Vec<_>>();
    let layer =
        MoeLayer::from_state(&Host, config, randomly(layer.state().expect("its state"))).expect("a layer");
    let adam = AdamW::from_state(&layer, AdamWOptions::default(), optimizer).expect("an optimizer");
    on_ranks(1, |world| {
        let (mesh, at) = (Mesh::all(1)[0], Mesh::all(1)[0].seat(0).expect("a rank"));
        let parts = LayerParts { prefix: PREFIX, mesh: &mesh, at: &at, config };
        let pieces = save_layer(&parts, &layer, &adam).expect("pieces");
        let metadata = BTreeMap::from([("step".to_owned(), "77".to_owned())]);
        write(folder, &mut world.group(&Host, "world", &[0]).expect("a group"), &pieces, &metadata)
            .expect("a checkpoint");
    });
}

/// Loads on a mesh and saves again.
fn pass_on<T: Scalar>(world: &World, mesh: &Mesh, config: &MoeConfig, kept: Kept, from: &Path, to: &Path)
where
    Host: MoeDevice<T>,
{
    let rank = world.rank();
    let (at, config) = (mesh.seat(rank).expect("a rank of the mesh"), placed(config, mesh, rank));
    let parts = LayerParts { prefix: PREFIX, mesh, at: &at, config: &config };
    let mut checkpoint = Checkpoint::open(from).expect("a whole checkpoint");
    let options = AdamWOptions::default();
    let pieces = match kept {
        Kept::Whole => {
            let (layer, adam) = load_layer::<T, _>(&parts, &mut checkpoint, &Host, options).expect("a layer");
            save_layer(&parts, &layer, &adam).expect("pieces")
        }
        Kept::Sharded => {
            let session = Session::new(&Host, 0).expect("a session");
            let mut make = |name, ranks: &[usize]| world.group(&Host, name, ranks);
            let fsdp = Fsdp::<_, T, _>::new(&session, mesh, rank, &config, 1, &mut make).expect("groups");
            let (layer, shards) =
                load_shards(&parts, &mut checkpoint, &session, &fsdp, options).expect("shards");
            save_shards(&parts, &session, &fsdp, &layer, &shards).expect("pieces")
        }
    };
    checkpoint.expect_all_read().expect("nothing else in it");
    let all: Vec<usize> = (0..mesh.world()).collect();
    let mut group = world.group(&Host, "world", &all).expect("a group");
    write(to, &mut group, &pieces, checkpoint.metadata()).expect("a checkpoint");
}

/// All tensors as one process would have them.
fn contents(folder: &Path) -> Vec<StateTensor> {
    let mut checkpoint = Checkpoint::open(folder).expect("a whole checkpoint");
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    names.iter().map(|name| checkpoint.read_whole(name).expect("a tensor")).collect()
}

fn travels_over<T: Scalar>(name: &str, meshes: impl Iterator<Item = Mesh>)
where
    Host: MoeDevice<T>,
{
    let folder = Folder::new(name);
    let config = config();
    let [mut from, mut to] = ["a", "b"].map(|name| folder.0.join(name));
    write_random::<T>(&from, &config);
    let want = contents(&from);
    for mesh in meshes {
        for kept in [Kept::Sharded, Kept::Whole] {
            on_ranks(mesh.world(), |world| pass_on::<T>(&world, &mesh, &config, kept, &from, &to));
            assert!(contents(&to) == want, "{mesh:?}, {kept:?}");
            std::mem::swap(&mut from, &mut to);
        }
    }
    let checkpoint = Checkpoint::open(&from).expect("a whole checkpoint");
    assert_eq!(checkpoint.metadata()["step"], "77");
}

#[test]
fn a_checkpoint_goes_from_mesh_to_mesh_bit_for_bit() {
    travels_over::<f32>("meshes", Mesh::all(8).into_iter());
}

#[test]
fn masters_travel_with_narrow_weights() {
    travels_over::<bf16>("masters", Mesh::all(4).into_iter());
}

/// Two ranks' files of one layer.
fn two_ranks(folder: &Folder) -> PathBuf {
    let (one, two) = (folder.0.join("one"), folder.0.join("two"));
    write_random::<f32>(&one, &config());
    let mesh = Mesh::new(2, Degrees { dp_shard: 2, ep: 2, ..Degrees::default() }).expect("a mesh");
    on_ranks(2, |world| pass_on::<f32>(&world, &mesh, &config(), Kept::Whole, &one, &two));
    two
}

/// What opening and reading everything says.
fn error(folder: &Path) -> CheckpointError {
    let read = |folder: &Path| -> Result<(), CheckpointError> {
        let mut checkpoint = Checkpoint::open(folder)?;
        let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
        names.iter().try_for_each(|name| checkpoint.read_whole(name).map(|_| ()))
    };
    read(folder).expect_err("a damaged checkpoint")
}

#[test]
fn files_that_are_missing_torn_or_too_many_are_named() {
    let folder = Folder::new("files");
    let two = two_ranks(&folder);
    let file = two.join("rank-00001.safetensors");
    let bytes = fs::read(&file).expect("a file");
    for length in [0, 7, 100, bytes.len() - 1] {
        fs::write(&file, &bytes[..length]).expect("a shorter file");
        let error = error(&two).to_string();
        assert!(error.contains("rank-00001") && error.contains("damaged"), "{error}");
    }
    for at in [bytes.len() - 1, bytes.len() / 2, 20] {
        let mut torn = bytes.clone();
        torn[at] ^= 1;
        fs::write(&file, torn).expect("a torn file");
        assert!(matches!(error(&two), CheckpointError::Damaged { .. }), "byte {at}");
    }
    fs::remove_file(&file).expect("there is one");
    assert!(matches!(error(&two), CheckpointError::MissingFile(path) if path == file));
    fs::write(&file, &bytes).expect("the file again");
    fs::copy(&file, two.join("rank-00002.safetensors")).expect("a file too many");
    assert!(matches!(error(&two), CheckpointError::SurplusFile(_)));
    fs::remove_file(two.join("rank-00002.safetensors")).expect("there is one");
    contents(&two);
    fs::write(two.join("manifest.json"), "{}").expect("another manifest");
    assert!(error(&two).to_string().contains("format"));
}

/// A checkpoint of 4 experts of which the ranks keep these.
fn of_experts(folder: &Path, kept: [&[usize]; 2]) {
    on_ranks(2, |world| {
        let own = kept[world.rank()];
        let values: Vec<f32> = own.iter().flat_map(|expert| [*expert as f32; 6]).collect();
        let tensor = StateTensor {
            name: "w2".to_owned(),
            shape: vec![own.len(), 2, 3],
            dtype: moe_core::DType::F32,
            bytes: bytemuck::cast_slice(&values).to_vec(),
        };
        let runs = own.iter().map(|expert| expert * 6..expert * 6 + 6).collect();
        let piece = Piece { tensor, whole: vec![4, 2, 3], runs };
        let mut group = world.group(&Host, "world", &[0, 1]).expect("a group");
        write(folder, &mut group, &[piece], &BTreeMap::new()).expect("a checkpoint");
    });
}

#[test]
fn an_expert_that_is_missing_or_there_twice_is_named() {
    let folder = Folder::new("experts");
    let path = folder.0.join("step");
    of_experts(&path, [&[3, 0], &[1, 2]]);
    let mut checkpoint = Checkpoint::open(&path).expect("a whole checkpoint");
    let values = bytemuck::pod_collect_to_vec::<u8, f32>(&checkpoint.read_whole("w2").expect("w2").bytes);
    assert!(values.into_iter().enumerate().all(|(at, value)| value == (at / 6) as f32));
    of_experts(&path, [&[0, 3], &[1]]);
    assert!(matches!(error(&path), CheckpointError::MissingRow { row: 2, rows: 4, .. }));
    of_experts(&path, [&[0], &[1, 2]]);
    assert!(matches!(error(&path), CheckpointError::MissingRow { row: 3, rows: 4, .. }));
    of_experts(&path, [&[0, 1], &[1, 2, 3]]);
    assert!(matches!(error(&path), CheckpointError::SurplusRow { row: 1, rows: 4, .. }));
}

#[test]
fn a_layer_with_more_or_fewer_experts_is_refused() {
    let folder = Folder::new("sizes");
    let path = folder.0.join("step");
    write_random::<f32>(&path, &config());
    for experts in [7, 9] {
        let mut config = config();
        config.experts = experts;
        let (mesh, at) = (Mesh::all(1)[0], Mesh::all(1)[0].seat(0).expect("a rank"));
        let parts = LayerParts { prefix: PREFIX, mesh: &mesh, at: &at, config: &config };
        let mut checkpoint = Checkpoint::open(&path).expect("a whole checkpoint");
        let loaded = load_layer::<f32, _>(&parts, &mut checkpoint, &Host, AdamWOptions::default());
        match loaded.map(|_| ()) {
            Err(CheckpointError::Shape { name, want, got, .. }) => {
                assert_eq!((name.as_str(), want[0], got[0]), ("layers.3.moe.gate", experts, 8));
            }
            other => panic!("wanted the number of experts, got {other:?}"),
        }
    }
}

#[test]
fn a_tensor_that_is_missing_or_not_the_layers_is_named() {
    let folder = Folder::new("tensors");
    let [mut bare, mut biased] = [config(); 2];
    (bare.gate_bias, biased.gate_bias) = (false, true);
    let load = |name: &str, written: &MoeConfig, loaded: &MoeConfig| {
        let path = folder.0.join(name);
        write_random::<f32>(&path, written);
        let (mesh, at) = (Mesh::all(1)[0], Mesh::all(1)[0].seat(0).expect("a rank"));
        let parts = LayerParts { prefix: PREFIX, mesh: &mesh, at: &at, config: loaded };
        let mut checkpoint = Checkpoint::open(&path).expect("a whole checkpoint");
        load_layer::<f32, _>(&parts, &mut checkpoint, &Host, AdamWOptions::default())
            .and_then(|_| checkpoint.expect_all_read())
    };
    let name = "layers.3.moe.gate_bias";
    let missing = load("missing", &bare, &biased).expect_err("no bias to load");
    assert!(matches!(&missing, CheckpointError::MissingTensor(tensor) if tensor == name), "{missing}");
    let surplus = load("surplus", &biased, &bare).expect_err("a bias for no layer");
    assert!(
        matches!(&surplus, CheckpointError::SurplusTensor(tensor) if tensor.ends_with("gate_bias")),
        "{surplus}"
    );
}

#[test]
fn a_rank_that_cannot_write_fails_all_and_leaves_the_old_checkpoint() {
    let folder = Folder::new("failing");
    let path = folder.0.join("step");
    of_experts(&path, [&[0, 1], &[2, 3]]);
    let before = contents(&path);
    let failed = on_ranks(2, |world| {
        let mut tensor = before[0].clone();
        if world.rank() == 1 {
            tensor.bytes.pop();
        }
        let mut group = world.group(&Host, "world", &[0, 1]).expect("a group");
        write(&path, &mut group, &[Piece::whole(tensor)], &BTreeMap::new())
    });
    assert!(matches!(failed[0], Err(CheckpointError::Collective(_))), "{:?}", failed[0]);
    assert!(matches!(failed[1], Err(CheckpointError::Piece { .. })), "{:?}", failed[1]);
    assert_eq!(contents(&path), before);
}
