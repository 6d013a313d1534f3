;; Reads another plugin's state: "../other". What is not offered cannot be asked: the import is refused, and nothing behind it matters.
(component
  (import "cofferdam:plugin/state@0.1.0" (instance $state (export "get" (func (param "key" string) (result (option (list u8)))))))
  (core module $m (func (export "handle")))
  (core instance $i (instantiate $m))
  (func $handle (canon lift (core func $i "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "cofferdam:plugin/handler@0.1.0" (instance $handler)))
