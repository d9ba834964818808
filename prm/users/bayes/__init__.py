"""Empirical-Bayes users: each user is a draw from the population, and few comparisons leave them near its average.

A comparison of two texts has the population's logit g and a feature difference z [r], in a subspace of the features or
in all of them. User u prefers the first text with P = sigmoid(c + <z, o_u>), o_u ~ N(0, S); EM estimates S from all
users. g is a marginal logit: it already averages over users. c is therefore g inflated, so that integrating over N(0,
S) gives sigmoid(g) back (a marginalised model: Heagerty, Biometrics 1999). g also contains the users' mean, so that of
their offsets is 0. g is fitted on the same comparisons as the offsets: otherwise what all users share and a held-out
head misses would end up in their offsets.

A posterior is the closest Gaussian to the exact one (variational, with the likelihood integrated by quadrature). A
Laplace approximation would make S, and so every user's distance from the average, far too small. It is kept as S minus
the product of a few columns of the user's own. That is low rank plus a part that all users share, where "low rank plus
diagonal" would give each user a diagonal: who said nothing has S itself.

This package works on tensors alone: no models, tokenizers or files.
"""
