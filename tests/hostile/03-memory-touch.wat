;; Takes memory and writes to all of it, until it is refused.
(func $handle (param $m i32) (result i32)
  (local $was i32)
  (loop $more
    (local.set $was (memory.grow (i32.const 16)))
    (if (i32.eq (local.get $was) (i32.const -1)) (then unreachable))
    (memory.fill (i32.mul (local.get $was) (i32.const 65536)) (i32.const 1) (i32.const 1048576))
    (br_if $more (i32.lt_u (local.get $was) (i32.const 4800))))
  unreachable)
