//! A device whose memory the host cannot read: elements are downloaded and uploaded.

use super::rig::{cause, gist, worlds};
use moe_core::{
    Collective, CollectiveFault, Device, Elem, Host, HostError, In, Out, Reduce, View, ViewMut, first, whole,
    whole_mut,
};

/// Like [`Host`], but its memory is not lent.
#[derive(Clone)]
struct Far {
    downloads: bool,
}

/// Memory of [`Far`].
struct Memory<T>(Vec<T>);

fn near<'a, T>(view: View<'a, Memory<T>>) -> View<'a, [T]> {
    let (memory, range) = view.parts();
    View::of(&memory.0[..]).slice(range).unwrap()
}

fn near_mut<'a, T>(view: ViewMut<'a, Memory<T>>) -> ViewMut<'a, [T]> {
    let (memory, range) = view.parts();
    ViewMut::of(&mut memory.0[..]).slice(range).unwrap()
}

impl Device for Far {
    type Error = HostError;
    type Stream = ();
    type Event = ();
    type Mem<T: Elem> = Memory<T>;
    type Owned<T: Elem> = Memory<T>;

    fn stream(&self) -> Result<(), HostError> {
        Ok(())
    }

    fn alloc<T: Elem>(&self, (): &(), len: usize) -> Result<Memory<T>, HostError> {
        Host.alloc(&(), len).map(Memory)
    }

    fn len<T: Elem>(memory: &Memory<T>) -> usize {
        memory.0.len()
    }

    fn upload<T: Elem>(&self, (): &(), source: &[T], target: Out<'_, Self, T>) -> Result<(), HostError> {
        Host.upload(&(), source, near_mut(target))
    }

    fn download<T: Elem>(&self, (): &(), source: In<'_, Self, T>, target: &mut [T]) -> Result<(), HostError> {
        if !self.downloads {
            return Err(HostError::Memory { len: source.len(), dtype: T::DTYPE });
        }
        Host.download(&(), near(source), target)
    }

    fn copy<T: Elem>(
        &self,
        (): &(),
        source: In<'_, Self, T>,
        target: Out<'_, Self, T>,
    ) -> Result<(), HostError> {
        Host.copy(&(), near(source), near_mut(target))
    }

    fn hand_over<T: Elem>(&self, _: &mut Memory<T>, (): &(), (): &()) -> Result<(), HostError> {
        Ok(())
    }

    fn record(&self, (): &()) -> Result<(), HostError> {
        Ok(())
    }

    fn wait(&self, (): &(), (): &()) -> Result<(), HostError> {
        Ok(())
    }

    fn sync(&self, (): &()) -> Result<(), HostError> {
        Ok(())
    }
}

#[test]
fn elements_of_any_device_take_part() {
    worlds(3, |world| {
        let mut group = world.group(&Far { downloads: true }, "all", &[0, 1, 2]).unwrap();
        let mut values = Memory(vec![world.rank() as f32, 1.0, 2.0]);
        group.all_reduce(&(), Reduce::Sum, whole_mut::<Far, f32>(&mut values)).unwrap();
        assert_eq!(values.0, [3.0, 3.0, 6.0]);
        let mut target = Memory(vec![0.0; 6]);
        let source = first::<Far, f32>(&values, world.rank() + 1).unwrap();
        group.all_gather(&(), source, whole_mut::<Far, f32>(&mut target), &[1, 2, 3]).unwrap();
        assert_eq!(target.0, [3.0, 3.0, 3.0, 3.0, 3.0, 6.0]);
        let mut one = Memory(vec![0.0]);
        let part = whole_mut::<Far, f32>(&mut one);
        group.reduce_scatter(&(), Reduce::Max, whole::<Far, f32>(&values), part, &[1, 1, 1]).unwrap();
        assert_eq!(one.0, [[3.0], [3.0], [6.0]][world.rank()]);
    });
}

#[test]
fn a_device_that_fails_on_one_rank_is_an_error_on_all() {
    let errors = worlds(3, |world| {
        let device = Far { downloads: world.rank() != 1 };
        let mut group = world.group(&device, "all", &[0, 1, 2]).unwrap();
        let mut values = Memory(vec![1.0_f32]);
        group.all_reduce(&(), Reduce::Sum, whole_mut::<Far, f32>(&mut values)).unwrap_err()
    });
    for error in errors {
        assert_eq!(error.fault, CollectiveFault::Device);
        assert_eq!(gist(&error), "rank 1 has a device that failed, in all_reduce 1 of group all");
        assert_eq!(cause(&error), "out of memory: could not allocate 1 elements of f32");
    }
}
