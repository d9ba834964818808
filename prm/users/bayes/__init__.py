"""Empirical-Bayes users: a person is a draw from everybody, and few judgements leave them close to the average.

A comparison of two texts has the population's logit g and a difference z [r] in some subspace of the features, or in
all of them. Person u prefers the first text with P = sigmoid(c + <z, o_u>), o_u ~ N(mu, S); S is learnt from everybody
by EM. g is a marginal logit: it already says how a random person answers. c is therefore g inflated, so that
integrating over N(0, S) gives sigmoid(g) back (a marginalised model: Heagerty, Biometrics 1999). The mean of all people
is in g too: mu is 0 but for people of whom something is known beforehand. g has seen the comparisons that offsets are
fitted to: what all people have in common and a head that has not seen them would miss must not become their offsets.

A posterior is the Gaussian closest to the exact one (variational, with the likelihood integrated by quadrature): a mode
with the curvature there would make S, and so everybody's distance from the average, far too small.

Numbers in, numbers out: tensors, and no model, tokenizer or file in this package.
"""
