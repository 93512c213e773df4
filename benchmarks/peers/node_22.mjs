// PostGraphile 5.1 asks for this of node 22; on node 20 it is all that is missing.
Promise.withResolvers ??= function () {
  let resolve, reject;
  const promise = new this((...both) => ([resolve, reject] = both));
  return { promise, resolve, reject };
};
