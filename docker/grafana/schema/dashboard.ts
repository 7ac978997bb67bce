/**
 * What a dashboard of ours may say, from Grafana's own types, with the holes closed that they leave open.
 *
 * Grafana types a panel's options, its custom field settings, its queries and its annotations as "any record", because
 * plugins own them. Here each kind of panel that we use has its plugin's options, and a query has the Prometheus data
 * source's fields, so that `tsc --strict` refuses a field that Grafana would pass over in silence. Enums become the
 * strings and numbers that JSON has. tests/monitoring/test_dashboard_schema.py gives every dashboard the type `Dashboard`.
 */
import type * as raw from "@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen";
import type { Options as StatOptions } from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type {
  FieldConfig as TimelineField,
  Options as TimelineOptions,
} from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type {
  FieldConfig as TableField,
  Options as TableOptions,
} from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type { Options as TextOptions } from "@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen";
import type {
  FieldConfig as SeriesField,
  Options as SeriesOptions,
} from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

/** A type as JSON writes it: the values of its enums instead of their names. */
type Written<T> = T extends string
  ? string extends T
    ? string
    : `${T}`
  : T extends number
    ? `${number}` extends `${T}` // not "number extends T": a number may be any numeric enum
      ? number
      : `${T}` extends `${infer N extends number}`
        ? N
        : never
    : T extends object
      ? { [K in keyof T]: Written<T[K]> }
      : T;

interface Source {
  type: "prometheus";
  uid: string;
}

/** The Prometheus data source's query; @grafana/schema 13 has no type for it any more. */
interface Query {
  refId: string;
  datasource: Source;
  expr: string;
  editorMode: "code" | "builder";
  legendFormat: string;
  range: boolean;
  instant: boolean;
  format: "time_series" | "table" | "heatmap";
}

interface DataLink {
  title: string;
  url: string;
  targetBlank?: boolean;
}

/** Those of Grafana's units that we use; it shows any other word behind the number as it is. */
type Unit = "bytes" | "flops" | "none" | "percentunit" | "reqps" | "s" | "sci" | "short" | "string";

type Field = Omit<Written<raw.FieldConfig>, "custom" | "links" | "unit"> & { links?: DataLink[]; unit?: Unit };

/** Any setting of a field, or of its panel's kind, with its value. */
type Property<Custom> =
  | { [K in keyof Field]-?: { id: K; value: Field[K] } }[keyof Field]
  | { [K in keyof Custom & string]-?: { id: `custom.${K}`; value: Custom[K] } }[keyof Custom & string];

type Transformation =
  | { id: "merge"; options: Record<string, never> }
  | {
      id: "organize";
      options: {
        excludeByName: Record<string, boolean>;
        renameByName: Record<string, string>;
        indexByName: Record<string, number>;
      };
    };

type Shared = Omit<
  Written<raw.Panel>,
  "type" | "datasource" | "description" | "fieldConfig" | "gridPos" | "options" | "targets" | "title" | "transformations"
>;

type Kind<Name extends string, Options, Custom> = Shared & {
  type: Name;
  title: string;
  description: string;
  gridPos: Written<raw.GridPos>;
  datasource: Source;
  targets: Query[];
  fieldConfig: {
    defaults: Field & { custom?: Custom };
    overrides: { matcher: { id: "byName"; options: string }; properties: Property<Custom>[] }[];
  };
  options: Options;
  transformations: Transformation[];
};

type Panel =
  | Kind<"timeseries", Written<SeriesOptions>, Written<SeriesField>>
  | Kind<"stat", Written<StatOptions>, Record<string, never>>
  | Kind<"state-timeline", Written<TimelineOptions>, Written<TimelineField>>
  | Kind<"table", Written<TableOptions>, Written<TableField>>
  | (Shared & { type: "text"; title: string; gridPos: Written<raw.GridPos>; options: Written<TextOptions> })
  | (Omit<Written<raw.RowPanel>, "panels"> & { panels: never[] });

/** The Prometheus data source reads these from the annotation itself. */
type Annotation = Omit<Written<raw.AnnotationQuery>, "target" | "datasource"> & {
  datasource: Source;
  expr: string;
  step: string;
  titleFormat: string;
  useValueForTime: boolean;
};

type Variable = Omit<Written<raw.VariableModel>, "query" | "datasource"> &
  (
    | { type: "datasource"; query: "prometheus" }
    | { type: "query"; datasource: Source; query: { qryType: number; query: string; refId: string } }
  );

export type Dashboard = Omit<Written<raw.Dashboard>, "panels" | "annotations" | "templating"> & {
  uid: string;
  title: string;
  panels: Panel[];
  annotations: { list: Annotation[] };
  templating: { list: Variable[] };
};
