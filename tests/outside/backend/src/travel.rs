//! Travel: arguments on their way from the caller's views to the worker, and results on their way back.

use crate::device::Far;
use crate::error::FarError;
use crate::memory::{Memory, Place};
use crate::stream::Stream;
use moe_core::ops::{Aux, Base, Weight};
use moe_core::{Accum, Elem, Host, In, Out, Scalar, View, ViewMut};

/// An argument of an op on the far device.
pub(crate) trait Travel {
    type Parcel: Parcel;
    /// What the worker needs of it.
    fn leave(self, stream: &Stream) -> Result<Self::Parcel, FarError>;
}

/// An argument with the worker.
pub(crate) trait Parcel: Send + 'static {
    /// The argument as the reference wants it.
    type Here<'a>;
    /// Reads the device's memory.
    fn arrive(&mut self);
    fn here(&mut self) -> Self::Here<'_>;
    /// Writes the device's memory.
    fn back(&self) {}
}

pub(crate) struct Source<T> {
    place: Place,
    values: Vec<T>,
}

pub(crate) struct Target<T>(Source<T>);

impl<T: Elem> Travel for View<'_, Memory<T>> {
    type Parcel = Source<T>;
    fn leave(self, stream: &Stream) -> Result<Source<T>, FarError> {
        let (memory, range) = self.parts();
        Ok(Source { place: memory.source(range, stream)?, values: Vec::new() })
    }
}

impl<T: Elem> Parcel for Source<T> {
    type Here<'a> = In<'a, Host, T>;
    fn arrive(&mut self) {
        self.values = self.place.load();
    }
    fn here(&mut self) -> In<'_, Host, T> {
        View::of(&self.values)
    }
}

impl<T: Elem> Travel for ViewMut<'_, Memory<T>> {
    type Parcel = Target<T>;
    fn leave(self, stream: &Stream) -> Result<Target<T>, FarError> {
        let (memory, range) = self.parts();
        Ok(Target(Source { place: memory.target(range, stream)?, values: Vec::new() }))
    }
}

impl<T: Elem> Parcel for Target<T> {
    type Here<'a> = Out<'a, Host, T>;
    fn arrive(&mut self) {
        self.0.arrive();
    }
    fn here(&mut self) -> Out<'_, Host, T> {
        ViewMut::of(&mut self.0.values)
    }
    fn back(&self) {
        self.0.place.store(&self.0.values);
    }
}

impl<X: Travel> Travel for Option<X> {
    type Parcel = Option<X::Parcel>;
    fn leave(self, stream: &Stream) -> Result<Self::Parcel, FarError> {
        self.map(|argument| argument.leave(stream)).transpose()
    }
}

impl<P: Parcel> Parcel for Option<P> {
    type Here<'a> = Option<P::Here<'a>>;
    fn arrive(&mut self) {
        self.iter_mut().for_each(P::arrive);
    }
    fn here(&mut self) -> Self::Here<'_> {
        self.as_mut().map(P::here)
    }
    fn back(&self) {
        self.iter().for_each(P::back);
    }
}

impl Travel for bool {
    type Parcel = bool;
    fn leave(self, _: &Stream) -> Result<bool, FarError> {
        Ok(self)
    }
}

impl Parcel for bool {
    type Here<'a> = bool;
    fn arrive(&mut self) {}
    fn here(&mut self) -> bool {
        *self
    }
}

/// Weights in either form.
pub(crate) enum Form<T> {
    Plain(Source<T>),
    Packed(Source<u8>),
}

impl<T: Elem> Travel for Weight<'_, Far, T> {
    type Parcel = Form<T>;
    fn leave(self, stream: &Stream) -> Result<Form<T>, FarError> {
        Ok(match self {
            Self::Plain(plain) => Form::Plain(plain.leave(stream)?),
            Self::Packed(packed) => Form::Packed(packed.leave(stream)?),
        })
    }
}

impl<T: Elem> Parcel for Form<T> {
    type Here<'a> = Weight<'a, Host, T>;
    fn arrive(&mut self) {
        match self {
            Self::Plain(plain) => plain.arrive(),
            Self::Packed(packed) => packed.arrive(),
        }
    }
    fn here(&mut self) -> Weight<'_, Host, T> {
        match self {
            Self::Plain(plain) => Weight::Plain(plain.here()),
            Self::Packed(packed) => Weight::Packed(packed.here()),
        }
    }
}

/// The terms of Combine.
pub(crate) struct Terms<T: Scalar>([Option<Term<T>>; 3]);

/// Rows and their factors.
type Term<T> = (Source<T>, Option<Source<<T as Scalar>::Acc>>);

impl<T: Scalar> Travel for [Option<Base<'_, Far, T>>; 3] {
    type Parcel = Terms<T>;
    fn leave(self, stream: &Stream) -> Result<Terms<T>, FarError> {
        let mut terms = [None, None, None];
        for (term, base) in terms.iter_mut().zip(self) {
            if let Some(base) = base {
                *term = Some((base.rows.leave(stream)?, base.scale.leave(stream)?));
            }
        }
        Ok(Terms(terms))
    }
}

impl<T: Scalar> Parcel for Terms<T> {
    type Here<'a> = [Option<Base<'a, Host, T>>; 3];
    fn arrive(&mut self) {
        for (rows, scale) in self.0.iter_mut().flatten() {
            rows.arrive();
            scale.arrive();
        }
    }
    fn here(&mut self) -> Self::Here<'_> {
        self.0.each_mut().map(|term| {
            let (rows, scale) = term.as_mut()?;
            Some(Base { rows: rows.here(), scale: scale.here() })
        })
    }
}

/// The load-balancing loss of RouteBwd.
pub(crate) struct Loss<A>(Source<u32>, Source<u32>, Source<A>);

impl<A: Accum> Travel for Aux<'_, Far, A> {
    type Parcel = Loss<A>;
    fn leave(self, stream: &Stream) -> Result<Loss<A>, FarError> {
        Ok(Loss(self.sequences.leave(stream)?, self.counts.leave(stream)?, self.factors.leave(stream)?))
    }
}

impl<A: Accum> Parcel for Loss<A> {
    type Here<'a> = Aux<'a, Host, A>;
    fn arrive(&mut self) {
        self.0.arrive();
        self.1.arrive();
        self.2.arrive();
    }
    fn here(&mut self) -> Aux<'_, Host, A> {
        Aux { sequences: self.0.here(), counts: self.1.here(), factors: self.2.here() }
    }
}
